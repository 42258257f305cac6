"""Take chosen files out of an archive."""

import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path


def unpack(archive: Path, names: Iterable[str], folder: Path) -> None:
    """Write the named files of a .tar.gz into the folder, without the folders they were in there.

    A file is named by the end of its path.  The archive is read once from front to back (seeking
    in a compressed one means to start over), and no path of it is ever written to.
    """
    missing = set(names)
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                if not missing:
                    break
                for name in [n for n in missing if f"/{member.name}".endswith(f"/{n}")]:
                    source = tar.extractfile(member)
                    if source is None:
                        continue
                    # A sparse file can be any size, whatever the archive's.
                    if member.size > (free := shutil.disk_usage(folder).free):
                        raise ValueError(
                            f"{name} in {archive} has {member.size} bytes, and the disk of "
                            f"{folder} has {free} free."
                        )
                    missing.remove(name)
                    with source, (folder / Path(name).name).open("wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{archive} is broken ({error}); delete it and run again to download it anew."
        ) from error
    if missing:
        raise ValueError(
            f"{archive} has no {', '.join(sorted(missing))}: it is another archive than the one "
            "this script was made for."
        )
