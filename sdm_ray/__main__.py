"""`python -m sdm_ray` is `sdm-ray`."""

from sdm_ray.cli import main

if __name__ == "__main__":
    main()
