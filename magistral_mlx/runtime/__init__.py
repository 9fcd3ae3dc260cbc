"""A loaded model at work: requests, their scheduler, and the worker thread that serves them."""
