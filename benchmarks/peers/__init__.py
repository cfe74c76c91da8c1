"""The engines that ours is measured against: files in their formats, and a worker process for each."""
