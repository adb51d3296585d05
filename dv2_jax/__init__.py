"""DeepEyesV2 in JAX: an agentic vision-language model, trained, served and exported."""
