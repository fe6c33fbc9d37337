"""What the user asked for and what a model is made of, decided before anything is computed. No torch."""
