"""Make a vision-language model forget something it sees, by a low-rank change of its Merger."""
