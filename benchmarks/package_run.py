"""Makes a packaged run from a workdir: config and EMA weights in float16, for `ddpm_jax/pretrained/NAME`.

    python -m ddpm_jax.train --config=configs/digits.py --workdir=runs/digits
    python benchmarks/package_run.py --workdir=runs/digits --out=ddpm_jax/pretrained/digits
"""

import argparse

from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.packaged_runs import save_packaged_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new folder")
    args = parser.parse_args()
    run = open_run(args.workdir)
    save_packaged_run(run.step, run.config, run.params, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
