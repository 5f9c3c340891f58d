"""Balance: a follower that keeps the read model of money, budgets and delivery."""
