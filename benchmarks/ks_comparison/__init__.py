"""The paper's comparison with SHAP and Integrated Gradients (Table 1)."""
