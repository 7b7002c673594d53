"""Exit with 0 if the server of this container takes requests, else with 1: what the HEALTHCHECK of the Dockerfile runs.

It asks TNN_READY_URL, by default the HTTP port of the Dockerfile. No proxy is used and no certificate is checked: it is
this container that answers.
"""

import os
import ssl
import sys
from http.client import HTTPException
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

url = os.environ.get("TNN_READY_URL") or "http://127.0.0.1:8000/v2/health/ready"
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
try:
    build_opener(ProxyHandler({}), HTTPSHandler(context=context)).open(url, timeout=4).close()
except (OSError, ValueError, HTTPException) as error:
    sys.exit(f"not ready: {url}: {error}")
