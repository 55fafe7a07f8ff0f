"""Of the trainers among the tools: the image tokenizer's step, the loop, a T5's texts."""
