"""A headless Chromium that a test drives, through a pipe and no network."""
import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

PROGRAM = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)


class Page:
    """One page, by the DevTools protocol.

    Attributes:
        problems (list): What the console and the page have complained of.
        requests (list): Addresses that were asked for.
    """

    def __init__(self):
        self.problems, self.requests = [], []
        self._folder = tempfile.TemporaryDirectory(
            ignore_cleanup_errors=True)
        # Chromium reads commands from its stream 3, and answers on 4.
        to_browser, self._send = os.pipe()
        self._receive, from_browser = os.pipe()
        streams = {3: to_browser, 4: from_browser}
        copies = {n: os.dup(fd) for n, fd in streams.items()}

        def place():
            for number, copy in copies.items():
                os.dup2(copy, number)

        self._process = subprocess.Popen(
            [PROGRAM, '--headless=new', '--no-sandbox', '--disable-gpu',
             '--disable-dev-shm-usage', '--no-first-run', '--hide-scrollbars',
             f'--user-data-dir={self._folder.name}',
             '--remote-debugging-pipe', 'about:blank'],
            preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        for fd in (*copies.values(), to_browser, from_browser):
            os.close(fd)
        self._number, self._buffer, self._session = 0, b'', None
        target = self.call('Target.getTargets')['targetInfos']
        page = next(t for t in target if t['type'] == 'page')
        self._session = self.call(
            'Target.attachToTarget', targetId=page['targetId'],
            flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        os.close(self._send)
        os.close(self._receive)
        self._folder.cleanup()

    def call(self, method, **params):
        """Send a command and wait for its answer."""
        self._number += 1
        message = dict(id=self._number, method=method, params=params)
        if self._session:
            message['sessionId'] = self._session
        os.write(self._send, json.dumps(message).encode() + b'\0')
        number = self._number
        while True:
            answer = self._next(180)
            if answer.get('id') == number:
                assert 'error' not in answer, answer
                return answer['result']

    def _next(self, seconds):
        end = time.monotonic() + seconds
        while b'\0' not in self._buffer:
            ready, _, _ = select.select(
                [self._receive], [], [], max(end - time.monotonic(), 0))
            assert ready, 'Chromium does not answer'
            data = os.read(self._receive, 1 << 20)
            assert data, 'Chromium has ended'
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b'\0')
        message = json.loads(line)
        self._note(message)
        return message

    def _note(self, message):
        name, params = message.get('method'), message.get('params', {})
        if name == 'Runtime.exceptionThrown':
            self.problems.append(params['exceptionDetails'])
        elif name == 'Runtime.consoleAPICalled' and (
                params['type'] in ('error', 'warning', 'assert')):
            self.problems.append(params['args'])
        elif name == 'Log.entryAdded' and params['entry']['level'] in (
                'error', 'warning'):
            self.problems.append(params['entry'])
        elif name == 'Network.requestWillBeSent':
            self.requests.append(params['request']['url'])

    def open(self, path, width, height=900, dark=False):
        """Show a file, or an address, in a window of so many pixels."""
        address = str(path) if '://' in str(path) else f'file://{path}'
        self.call('Emulation.setDeviceMetricsOverride', width=width,
                  height=height, deviceScaleFactor=1, mobile=False)
        self.call('Emulation.setEmulatedMedia', features=[dict(
            name='prefers-color-scheme', value='dark' if dark else 'light')])
        self.call('Page.navigate', url=address)
        for _ in range(600):
            if self.run('document.readyState === "complete" && '
                        'location.protocol !== "about:"'):
                break
            time.sleep(0.05)

    def run(self, script):
        """Evaluate JavaScript, and give what comes of it."""
        answer = self.call('Runtime.evaluate', expression=script,
                           returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in answer, answer
        return answer['result'].get('value')

    def press(self, key, text=''):
        """Press a key where the focus is."""
        codes = dict(Tab=9, Escape=27)
        for kind in ('keyDown', 'keyUp'):
            self.call('Input.dispatchKeyEvent', type=kind, key=key,
                      windowsVirtualKeyCode=codes.get(key, 0),
                      **(dict(text=text) if kind == 'keyDown' else {}))

    def picture(self, path, whole=True):
        """Save a screenshot."""
        data = self.call('Page.captureScreenshot',
                         captureBeyondViewport=whole)['data']
        with open(path, 'wb') as file:
            file.write(base64.b64decode(data))
