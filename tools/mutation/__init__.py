"""Mutation testing of the arithmetic, the rules and the plan with mutmut."""
