"""Many runs from one recipe: what they are (grid), that each comes to its end (queue), and what they show (outcome)."""
