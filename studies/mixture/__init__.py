"""A small language model on six kinds of text: which mixture serves all, and which Italian?"""
