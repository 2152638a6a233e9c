import torch

from metarun.data.split import stack_classes
from metarun.episodes import gather, labelled, labels

SUPPORT = torch.tensor([[[5, 4], [0, 1]], [[2, 3], [7, 6]]])  # [T=2, way=2, shot=2]
QUERY = torch.tensor([[[3, 2, 0], [6, 7, 1]], [[4, 0, 1], [5, 1, 7]]])  # [T=2, way=2, query=3]
ROWS = torch.cat([SUPPORT.flatten(1), QUERY.flatten(1)], dim=1)


def test_gather_equals_a_loop():
    """Class after class of a task, its examples in the order of the rows, normalised."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 2, 4), generator=generator).to(torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.75)
    split = stack_classes("images", {"a": images[:4], "b": images[4:]}, mean=mean, std=std)
    episodes = gather(split, labelled(ROWS, way=2, shot=2))
    for rows, x, y in (
        (SUPPORT, episodes.support_x, episodes.support_y),
        (QUERY, episodes.query_x, episodes.query_y),
    ):
        for task in range(2):
            place = 0
            for label in range(2):
                for row in rows[task, label].tolist():
                    scaled = images[row].double() / 255
                    wanted = (scaled - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
                        :, None, None
                    ]
                    assert (x[task, place] - wanted).abs().max() < 1e-6
                    assert y[task, place] == label
                    place += 1
            assert place == len(x[task]) == len(y[task])
    assert episodes.way == 2


def test_labels_and_order_worked_by_hand():
    """Each example is the number of its row."""
    split = stack_classes("vectors", {"a": torch.arange(8.0)[:, None]})
    episodes = gather(split, labelled(ROWS, way=2, shot=2))
    assert episodes.support_x[..., 0].tolist() == [[5, 4, 0, 1], [2, 3, 7, 6]]
    assert episodes.support_y.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert episodes.query_x[..., 0].tolist() == [[3, 2, 0, 6, 7, 1], [4, 0, 1, 5, 1, 7]]
    assert episodes.query_y.tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert episodes.query_y.dtype == torch.int64


def test_labels_stay_where_they_were():
    """A recorded step reads them there, whatever other tasks were drawn since."""
    wanted = labels(2, 3, 4, torch.device("cpu"))
    assert wanted.tolist() == 2 * [[0] * 4 + [1] * 4 + [2] * 4]
    others = [labels(2, 3, each, torch.device("cpu")) for each in range(100, 300)]
    assert len({other.data_ptr() for other in others}) == len(others)
    assert labels(2, 3, 4, torch.device("cpu")).data_ptr() == wanted.data_ptr()
