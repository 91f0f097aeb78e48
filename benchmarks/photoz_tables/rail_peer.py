"""A method of RAIL in its own interpreter: python rail_peer.py FOLDER.

FOLDER holds in.npz (magnitudes and errors of training and test rows, redshifts, grid) and job.json;
out.npy is written there, the CDFs of the test rows on the grid. Needs pz-rail-flexzboost or
pz-rail-sklearn. Settings that job.json does not name are RAIL's defaults.
"""

import json
import os
import sys

import numpy as np

os.chdir(sys.argv[1])
with open("job.json") as file:
    job = json.load(file)
data = dict(np.load("in.npz"))

from rail.core.data import TableHandle  # noqa: E402  (writes into the working folder)

if job["method"] == "flexzboost":
    from rail.estimation.algos.flexzboost import FlexZBoostEstimator as Estimator
    from rail.estimation.algos.flexzboost import FlexZBoostInformer as Informer
else:
    from rail.estimation.algos.k_nearneigh import KNearNeighEstimator as Estimator
    from rail.estimation.algos.k_nearneigh import KNearNeighInformer as Informer

mags = [f"mag{k}" for k in range(data["mag"].shape[1])]
errs = [f"err{k}" for k in range(len(mags))]


def table(name, mag, err, z):
    columns = dict(zip(mags, mag.T.copy(), strict=True))
    # An unknown error is a magnitude's, as that of a non-detection.
    columns |= dict(zip(errs, np.where(np.isfinite(err), err, 1.0).T.copy(), strict=True))
    return TableHandle(name, data={**columns, "redshift": z})


common = {
    "zmin": 0.0,
    "zmax": job["zmax"],
    "nzbins": 301,
    "nondetect_val": float("nan"),
    "mag_limits": dict(zip(mags, np.nanmax(data["mag"], axis=0).tolist(), strict=True)),
    "bands": mags,
    "ref_band": mags[job["reference"]],
    "redshift_col": "redshift",
    "hdf5_groupname": "",
}
settings = dict(job["settings"])
if job["method"] == "flexzboost":
    common |= {"err_bands": errs, "include_mag_err": settings.pop("include_mag_err", False)}
informer = Informer.make_stage(name="inform", model="model.pkl", **common, **settings)
informer.inform(table("train", data["mag"], data["err"], data["z"]))
estimator = Estimator.make_stage(
    name="estimate", model=informer.get_handle("model"), chunk_size=100_000, **common
)
unknown = np.zeros(len(data["mag_test"]))
found = estimator.estimate(table("test", data["mag_test"], data["err_test"], unknown))()

grid = data["grid"]
if job["method"] == "flexzboost":
    made = found.build_tables()
    nodes, heights = made["meta"]["xvals"].ravel(), made["data"]["yvals"]
    pdf = np.stack([np.interp(grid, nodes, row, right=0.0) for row in heights])
    steps = (pdf[:, 1:] + pdf[:, :-1]) / 2 * np.diff(grid)
    cdf = np.pad(np.cumsum(steps, axis=1), ((0, 0), (1, 0)))
else:
    cdf = found.cdf(grid)
    cdf -= cdf[:, :1]
np.save("out.npy", (cdf / np.maximum(cdf[:, -1:], 1e-12)).astype(np.float32))
