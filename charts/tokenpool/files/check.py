"""A check of `helm test`: an address answers with a status within a minute. Arguments: URL, status."""

import sys
import time
import urllib.error
import urllib.request

url, wanted = sys.argv[1], int(sys.argv[2])
deadline = time.monotonic() + float(sys.argv[3] if len(sys.argv) > 3 else 60)
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
while True:
    try:
        with direct.open(url, timeout=5) as answer:
            seen = str(answer.status)
    except urllib.error.HTTPError as error:
        seen = str(error.code)
    except OSError as error:
        seen = f"no answer ({error})"
    if seen == str(wanted):
        print(f"{url}: {seen}, as expected")
        break
    if time.monotonic() >= deadline:
        meaning = " A request without a key reaches a model: is the sidecar there?" if seen == "200" else ""
        sys.exit(f"{url}: {seen} instead of {wanted}.{meaning}")
    time.sleep(1)
