"""Which of 20 newsgroups is a post from? Four groups of them that compete for one head."""
