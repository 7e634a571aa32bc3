"""Eight groups of newsgroups that share some, one of them with few examples: one head."""
