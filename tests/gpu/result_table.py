"""A pytest plugin: one table of checks and outcomes."""

_ROWS = []


def pytest_runtest_logreport(report):
    """Keep how each check ended, and why; with xdist in its main process."""
    if report.when != 'call' and report.passed:
        return
    reason = ''
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix('Skipped: ')
    elif report.failed:
        crash = getattr(report.longrepr, 'reprcrash', None)
        reason = (crash.message if crash else str(report.longrepr))
        reason = reason.splitlines()[0][:70]
    else:
        reason = ', '.join(f'{k}: {v}' for k, v in report.user_properties)
    name = report.nodeid.split('::')[-1].removeprefix('test_')
    _ROWS.append((name, report.outcome, report.duration, reason))


def pytest_terminal_summary(terminalreporter):
    """Print the table."""
    write = terminalreporter.write_line
    write('')
    write(f'{"what":<48} {"result":<8} {"seconds":>7}  remarks')
    for name, result, seconds, reason in _ROWS:
        write(f'{name:<48} {result:<8} {seconds:7.1f}  {reason}')
    total = sum(row[2] for row in _ROWS)
    write(f'{len(_ROWS)} checks in {total:.0f} s')
