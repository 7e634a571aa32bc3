"""Three conflicting digit tasks, one shared head, a small ViT: the whole path in a minute."""
