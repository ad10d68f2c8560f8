"""What every S3 server for tests offers: an address, credentials, buckets.

Why it exists: a test that runs against moto by day and against Ceph by night must not see
the difference; both are an :class:`S3Server`.

May import: errors, process. botocore comes with s3fs, a core dependency.
"""

from __future__ import annotations

import uuid
from typing import Any

from helios_ray.testing.servers.process import LOOPBACK, Server


class S3Server(Server):
    """An S3 address with credentials.

    Args:
        port: of the loopback address.
        access_key: access key id.
        secret_key: secret access key; masked in ``repr``.
    """

    region = "us-east-1"

    def __init__(self, *, port: int, access_key: str, secret_key: str) -> None:
        self.port = port
        self.access_key = access_key
        self.secret_key = secret_key

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint_url!r}, secret_key='***')"

    @property
    def endpoint_url(self) -> str:
        """The address, as S3 clients take it."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """Arguments for ``fsspec.filesystem("s3", **options)``; a fresh dict every time."""
        return {
            "key": self.access_key,
            "secret": self.secret_key,
            "endpoint_url": self.endpoint_url,
            # Other processes write to the bucket: a cached listing would be wrong.
            "use_listings_cache": False,
            "client_kwargs": {"region_name": self.region},
            # Virtual-hosted addressing would need a name server for bucket.127.0.0.1.
            "config_kwargs": {"s3": {"addressing_style": "path"}},
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables of the AWS clients, for subprocesses."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint_url,
        }

    def client(self) -> Any:
        """A plain botocore S3 client, to look at objects past fsspec."""
        import botocore.session
        from botocore.config import Config

        return botocore.session.get_session().create_client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )

    def new_bucket(self, prefix: str = "helios") -> str:
        """Create a bucket that no other test uses and return its name."""
        name = f"{prefix}-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name
