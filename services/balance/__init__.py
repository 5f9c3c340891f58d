"""Balance: the follower that keeps the read model of money, budgets and delivery."""
