"""A browser for the tests of the page: chromedriver's own HTTP interface, and nothing to install
but Chromium (make viewer-test does that on Debian and Ubuntu).

https://www.w3.org/TR/webdriver2/ lists the commands; cdp() speaks to Chromium itself.
"""
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element, fixed by the standard
KEYS = {"ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015",
        "Home": "\ue011", "End": "\ue010", "Tab": "\ue004", "Escape": "\ue00c", "Space": " ",
        "PageUp": "\ue00e", "PageDown": "\ue00f", "Shift": "\ue008"}
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--disable-dev-shm-usage", "--force-device-scale-factor=1", "--lang=en"]


def missing():
    """-> why there is no browser, or None."""
    names = [("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)]
    lacking = [some[0] for some in names if not any(map(shutil.which, some))]
    words = f"no {' and no '.join(lacking)} here; install with: make viewer-test"
    return words if lacking else None


class Browser:
    """One window. folder: for its profile and what it downloads."""

    def __init__(self, folder):
        self.folder = folder
        binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser",
                                                      "google-chrome"))))
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL, text=True, start_new_session=True)
        port = None
        while port is None:
            line = self.driver.stdout.readline()
            if not line:
                raise RuntimeError("chromedriver ended at once")
            port = re.search(r"started successfully on port (\d+)", line)
        self.url = f"http://127.0.0.1:{port.group(1)}"
        options = {"binary": binary, "args": [*ARGUMENTS, f"--user-data-dir={folder}/profile"],
                   "prefs": {"download.default_directory": str(folder)}}
        asked = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": asked}})
        self.url += f"/session/{session['sessionId']}"

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, kind, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by a proxy
        try:
            with opener.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as e:
            raise RuntimeError(json.load(e)["value"]["message"].splitlines()[0]) from None

    def close(self):
        try:
            self.call("DELETE", "")
        finally:
            os.killpg(self.driver.pid, signal.SIGTERM)  # its own group: itself and its browser
            self.driver.wait(10)

    def cdp(self, command, **params):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def open(self, url):
        self.call("POST", "/url", {"url": "about:blank"})  # so that a new #hash is a new page
        self.call("POST", "/url", {"url": url})
        wait(self, "return document.readyState === 'complete'")  # a busy browser answers earlier

    def size(self, width, height):
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme):
        self.cdp("Emulation.setEmulatedMedia",
                 features=[{"name": "prefers-color-scheme", "value": scheme}])

    def run(self, script, *args):
        """The value of a script's `return`."""
        return self.call("POST", "/execute/sync", {"script": script, "args": list(args)})

    def find(self, css):
        found = self.call("POST", "/element", {"using": "css selector", "value": css})
        return found[ELEMENT]

    def click(self, css):
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", css)
        self.call("POST", f"/element/{self.find(css)}/click", {})

    def pick(self, css, files):
        """Give files to a file input."""
        self.call("POST", f"/element/{self.find(css)}/value", {"text": "\n".join(map(str, files))})

    def press(self, *keys):
        """Keys by name, or characters, to whatever has the focus."""
        strokes = [{"type": kind, "value": KEYS.get(key, key)}
                   for key in keys for kind in ("keyDown", "keyUp")]
        self.act({"type": "key", "id": "keys", "actions": strokes})

    def hover(self, css):
        self.act({"type": "pointer", "id": "mouse", "actions": [
            {"type": "pointerMove", "duration": 0, "x": 0, "y": 0,
             "origin": {ELEMENT: self.find(css)}}]})

    def act(self, *actions):
        self.call("POST", "/actions", {"actions": list(actions)})

    def text(self, css):
        return self.run("const e = document.querySelector(arguments[0]); "
                        "return e.innerText ?? e.textContent", css)

    def log(self):
        """What the console was told since the last call."""
        return [f"{entry['level']}: {entry['message']}"
                for entry in self.call("POST", "/se/log", {"type": "browser"})]

    def picture(self, file):
        with open(file, "wb") as f:
            f.write(base64.b64decode(self.call("GET", "/screenshot")))


def wait(browser, script):
    """Until the script returns something true; a busy machine is given a minute."""
    end = time.monotonic() + 60
    while not browser.run(script):
        if time.monotonic() > end:
            raise AssertionError(f"never came true: {script}")
        time.sleep(0.02)
