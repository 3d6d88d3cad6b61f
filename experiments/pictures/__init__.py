"""Pictures of a run: learning curve, model, video, skills and plans."""
