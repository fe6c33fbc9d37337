"""What is made before any rank starts: Cases, weights, inputs, the oracle, and whether there is room."""
