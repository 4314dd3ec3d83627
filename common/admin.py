"""What the admin pages have in common; and who may come in: users, groups, and owners with their API keys."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import quote
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.html import format_html
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from common import database
from common.addresses import is_address
from common.models import ApiKey, Owner
from common.permissions import may_look
from common.signing import is_secret, new_secret

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]  # the theme has no types; its class has Django's methods
    ModelForm = forms.ModelForm[Any]
else:
    from django.forms import ModelForm
    from unfold.admin import ModelAdmin

admin.site.index_title = "Now"


class LookOnly(ModelAdmin):
    """Rows that only the server itself writes."""

    list_filter_sheet = False
    list_fullwidth = True

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """The row, or None; also for an address with the id as the API tells it. Django takes a part such as `_26` of
        it for a quoted character, as in the addresses that it makes itself."""
        for each in (object_id, quote(object_id)):
            if (found := super().get_object(request, each, from_field)) is not None:
                return found
        return None

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may_look(request, self.opts.label_lower)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


LIMITS = ("max_stored_bytes", "max_active_batches", "max_open_lines", "max_requests_per_minute", "max_streams")


class OwnerForm(ModelForm):
    """Its own rules are those of a webhook: an address with a secret, which is made if there is none."""

    class Meta:
        model = Owner
        fields = ("name", *LIMITS, "webhook_url", "webhook_secret")

    def clean_webhook_url(self) -> str:
        url: str = self.cleaned_data["webhook_url"].strip()
        if url and not is_address(url):
            raise forms.ValidationError(
                "Expected an address that begins with http:// or https://, such as https://example.org/hook."
            )
        return url

    def clean_webhook_secret(self) -> str:
        secret: str = self.cleaned_data["webhook_secret"].strip()
        if not secret:
            return new_secret() if self.cleaned_data.get("webhook_url") else ""
        if not is_secret(secret):
            raise forms.ValidationError(
                "Expected whsec_ and at least 24 bytes in base64. Leave it empty to have one made."
            )
        return secret


@admin.register(Owner)
class OwnerAdmin(ModelAdmin):
    """Owners are made and changed here, and never deleted: their rows would have none."""

    form = OwnerForm
    list_display = ("name", "keys", "created_at")
    search_fields = ("name",)
    ordering = ("name",)
    list_filter_sheet = False
    list_fullwidth = True
    fieldsets = (
        (None, {"fields": ("name",)}),
        (
            "Limits",
            {
                "description": "Empty: that of the settings (OWNER_MAX_…). 0: none.",
                "fields": LIMITS,
            },
        ),
        ("Webhook", {"fields": ("webhook_url", "webhook_secret")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Owner]:
        live = ApiKey.objects.live().filter(owner=OuterRef("pk")).order_by().values("owner")
        counted = live.annotate(count=Count("pk")).values("count")
        found: QuerySet[Owner] = super().get_queryset(request)
        return found.annotate(live_keys=Coalesce(Subquery(counted), 0))

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """The webhook's address and secret are for those who may change them."""
        fieldsets = super().get_fieldsets(request, obj)
        return fieldsets if self.has_change_permission(request, obj) else fieldsets[:-1]

    @admin.display(description="Live keys")
    def keys(self, owner: Any) -> int:
        count: int = owner.live_keys
        return count

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ApiKeyForm(ModelForm):
    class Meta:
        model = ApiKey
        fields = ("name", "owner", "for_batches", "for_chat", "is_admin", "expires_at")

    def clean_expires_at(self) -> datetime | None:
        expires_at: datetime | None = self.cleaned_data["expires_at"]
        if expires_at is not None and expires_at <= database.now():
            raise forms.ValidationError("This is over: the key would never be taken. Expected a time to come, or none.")
        return expires_at

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if not any(cleaned.get(name) for name in ("for_batches", "for_chat", "is_admin")):
            raise forms.ValidationError("A key has to be for something: choose a scope.")
        return cleaned


@admin.register(ApiKey)
class ApiKeyAdmin(LookOnly):
    """A key is made and revoked, and never changed: whoever has it was told what it is for."""

    list_display = ("name", "hint", "owner", "told_scopes", "created_at", "expires_at", "last_used_at", "revoked_at")
    list_select_related = ("owner",)
    list_filter = ("owner",)
    search_fields = ("name", "hint", "owner__name")
    ordering = ("-created_at",)
    fields = list_display
    form = ApiKeyForm
    actions = ("revoke",)

    @admin.display(description="Scopes")
    def told_scopes(self, key: ApiKey) -> str:
        return ", ".join(key.scopes)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ApiKeyForm.Meta.fields if obj is None else self.fields

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("batchserver.add_apikey")

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Shows the secret once: what is stored cannot be read back."""
        secret = obj.make_secret()
        super().save_model(request, obj, form, change)
        told = (
            "The key is {} . It is shown this once: copy it now. Once there is a key, every call of the API needs one."
        )
        self.message_user(request, format_html(told, format_html("<code>{}</code>", secret)), messages.SUCCESS)

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        return redirect("admin:batchserver_apikey_changelist")

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("batchserver.change_apikey")

    @admin.action(description="Revoke selected API keys", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        for key in queryset:
            key.revoke()
            self.message_user(request, f"Revoked {key}.", messages.SUCCESS)


# Django's own pages of users and groups, in the theme.
admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):  # type: ignore[type-arg]  # Django's is no generic at run time
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    filter_horizontal = ()  # Django's two lists beside each other are wider than a window


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):
    filter_horizontal = ()
