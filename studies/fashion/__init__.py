"""Three groups of Fashion-MNIST, one shared head, a small ViT: tasks in hard conflict."""
