"""Which local paths are read in windows of whole shards: those of network file systems."""

from pathlib import Path

import pytest

from regscale.data._mounts import on_network

MOUNTS = """\
/dev/sda / ext4 rw 0 0
server:/x /scratch lustre rw 0 0
/dev/nvme0 /scratch/nvme xfs rw 0 0
s3 /with\\040space fuse.cephfs rw 0 0
/dev/sdb1 /usb fuseblk rw 0 0
nfs-backup /archive fuse.squashfuse rw 0 0
s3fs /loop ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "network"),
    [
        ("/home/me/data", False),
        ("/scratch/data", True),
        ("/scratch", True),
        ("/scratch-local/data", False),
        ("/scratch/nvme/data", False),
        ("/with space/data", True),
        ("/usb/data", False),
        ("/archive/data", False),
        ("/loop/data", False),
    ],
)
def test_the_innermost_mount_of_a_path_decides(tmp_path: Path, path: str, network: bool) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert on_network(path, str(mounts)) is network


@pytest.mark.parametrize(
    "source_and_kind",
    [
        "server:/x nfs4",
        "server:/x beegfs_nodev",
        "server:/x glusterfs",
        "server:/x fuse.glusterfs",
        "tcp://server:3334/orangefs pvfs2",
        "s3fs fuse.s3fs",
        "bucket fuse.goofys",
        "mountpoint-s3 fuse",
        "gcsfuse fuse",
        "my-bucket fuse.gcsfuse",
        "blobfuse2 fuse",
        "JuiceFS:volume fuse.juicefs",
        "remote:folder fuse.rclone",
        "alluxio-fuse fuse.alluxio-fuse",
        "dfuse fuse.daos",
        "quobyte@registry/volume fuse",
        "mfs#master:9421 fuse",
        "me@host:folder fuse.sshfs",
        "share virtiofs",
    ],
)
def test_network_file_systems_are_known_by_type_or_by_the_source_of_bare_fuse(
    tmp_path: Path, source_and_kind: str
) -> None:
    source, kind = source_and_kind.split()
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\n{source} /data {kind} rw 0 0\n")
    assert on_network("/data/set", str(mounts))
