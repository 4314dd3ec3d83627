"""What is a secret among the settings, wherever they are shown: error reports, `manage.py diffsettings`."""

import re
from typing import Any

from django.views.debug import SafeExceptionReporterFilter

_USER_OF_URL = re.compile(r"(?<=://)[^/\s]+(?=@)")


class SecretsMasked(SafeExceptionReporterFilter):
    """Django's own filter by names, and what it does not know: an address that is itself a secret, and the user and
    password in any other address."""

    hidden_settings = re.compile(
        f"{SafeExceptionReporterFilter.hidden_settings.pattern}|WEBHOOK_URL|DSN", re.IGNORECASE
    )

    def cleanse_setting(self, key: Any, value: Any) -> Any:
        cleansed = super().cleanse_setting(key, value)
        if isinstance(cleansed, str):
            return _USER_OF_URL.sub(self.cleansed_substitute, str(cleansed))  # it may be made when first needed
        return cleansed
