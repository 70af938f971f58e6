"""Networks: bodies, the preconditioned denoiser, the paper's score network, and generators."""
