"""`python -m dv2_jax.report RUN_DIR` writes the report page of a run."""

from dv2_jax.report.page import main

if __name__ == "__main__":
    main()
