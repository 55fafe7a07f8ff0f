"""Of the tools that use a model: prompts and pictures in, files of pictures and captions out."""
