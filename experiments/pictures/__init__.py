"""Pictures of a run: learning curve, model, policy, skills and plans."""
