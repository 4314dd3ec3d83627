"""What the admin pages have in common; and who may come in: users, groups, and API keys, listed and revoked. API keys
are made on the command line, where the secret can be shown once."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from common.models import ApiKey
from common.permissions import may_look

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]  # the theme has no types; its class has Django's methods
else:
    from unfold.admin import ModelAdmin

admin.site.index_title = "Now"


class LookOnly(ModelAdmin):
    """Rows that only the server itself writes."""

    list_filter_sheet = False
    list_fullwidth = True

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may_look(request, self.opts.label_lower)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(ApiKey)
class ApiKeyAdmin(LookOnly):
    list_display = ("name", "hint", "is_admin", "created_at", "revoked_at")
    fields = list_display
    actions = ("revoke",)

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


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):
    pass
