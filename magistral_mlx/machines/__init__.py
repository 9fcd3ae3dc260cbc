"""Several machines that hold one model: naming, checking, measuring and starting them."""
