"""A folder of images to Parquet files, with Ray: ``python deploy/batch/classify_folder.py PHOTOS OUT``.

The same lines read object storage (``s3://``, ``gs://``) and run on a cluster; `--actors` and `--gpus` say what the
cluster has. Rows: path, class_ids, labels, probabilities, error.
"""

from __future__ import annotations

import argparse

import ray

from service.batch import Classifier


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", help="a folder or a URL that Ray Data reads")
    parser.add_argument("out", help="a folder or a URL for the Parquet files")
    parser.add_argument("--model", default="densenet121")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--actors", type=int, default=1, help="models that work side by side: one a GPU")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each actor")
    arguments = parser.parse_args()
    settings = {"model": arguments.model, "weights": arguments.weights, "top_k": arguments.top_k}
    (
        ray.data.read_binary_files(arguments.photos, include_paths=True)
        .map_batches(
            Classifier,
            fn_constructor_kwargs=settings,
            batch_size=64,
            concurrency=arguments.actors,
            num_gpus=arguments.gpus,
        )
        .write_parquet(arguments.out)
    )


if __name__ == "__main__":
    main()
