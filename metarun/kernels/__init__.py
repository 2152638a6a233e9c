"""What torch has no one operation for, in C: compiled on the machine that it is to run on."""
