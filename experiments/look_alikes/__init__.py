"""By which measure images of two splits are called look-alikes."""
