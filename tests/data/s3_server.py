"""An S3 that is not ours: moto's server, in a thread of this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from store_process import SECRETS

_KEYS = {
    "aws_access_key_id": SECRETS["AWS_ACCESS_KEY_ID"],
    "aws_secret_access_key": SECRETS["AWS_SECRET_ACCESS_KEY"],
    "region_name": SECRETS["AWS_REGION"],
}


class S3Server:
    """A running store with two buckets: ``data``, and ``open``, which everybody may read."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._s3 = boto3.client("s3", endpoint_url=f"http://{address}", **_KEYS)
        for bucket in ("data", "open"):
            self._s3.create_bucket(Bucket=bucket)
        everybody = {"Effect": "Allow", "Principal": "*", "Resource": "arn:aws:s3:::open/*",
                     "Action": ["s3:GetObject", "s3:HeadObject"]}  # fmt: skip
        policy = json.dumps({"Version": "2012-10-17", "Statement": [everybody]})
        self._s3.put_bucket_policy(Bucket="open", Policy=policy)

    def put(self, folder: Path, path: str) -> None:
        """Copy the files of a folder to BUCKET/PATH."""
        bucket, _, prefix = path.partition("/")
        for file in folder.iterdir():
            self._s3.upload_file(str(file), bucket, f"{prefix}/{file.name}")

    def keys_of_a_reader(self) -> dict[str, str]:
        """The keys of a new user who may read ``data``; for `enable_iam_authentication`."""
        iam = boto3.client("iam", endpoint_url=f"http://{self.address}", **_KEYS)
        iam.create_user(UserName="reader")
        may = {"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::data*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [may]})
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        return {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }

    def s3(self, path: str) -> str:
        """A folder for whoever has the keys."""
        return f"s3://{path}?endpoint_override={self.address}&scheme=http"

    def open(self, path: str) -> str:
        """A folder for everybody."""
        return self.s3(f"open/{path}") + "&anonymous=true"


@contextmanager
def s3_server() -> Iterator[S3Server]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield S3Server("{}:{}".format(*server.get_host_and_port()))
    finally:
        server.stop()
