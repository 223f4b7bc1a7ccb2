"""What placing and filtering rationales is worth: students of equal tokens, scored on the same problems.

From the root of the checkout, with the `demo` extra installed: `python -m ablation placements --jobs 2`.
"""
