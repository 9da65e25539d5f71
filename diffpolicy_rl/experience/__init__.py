"""What agents learn from online: buffers, returns and advantages, chunk queues."""
