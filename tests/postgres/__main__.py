"""`python -m tests.postgres [pytest arguments]`: the test suite on a PostgreSQL server that is started for it."""

import os
import signal
import subprocess
import sys

from tests.postgres.server import NoPostgresError, temporary_server


def main() -> int:
    # SIGTERM would skip the `finally` that ends the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with temporary_server() as server:
            environment = {**os.environ, "QWEN3VL_DATABASE_URL": server.url()}
            return subprocess.run(
                [sys.executable, "-m", "pytest", *sys.argv[1:]], env=environment, check=False
            ).returncode
    except NoPostgresError as exc:
        print(exc, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
