"""Do attributions foretell what the model does when inputs are taken away?"""
