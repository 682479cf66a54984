"""What is trained: problems of one's own, and those that come along."""
