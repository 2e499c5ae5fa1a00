"""ELAN: an `.eaf` file, XML, with tiers of annotations over one or more media files; times in milliseconds.

    <ANNOTATION_DOCUMENT><HEADER><MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/kitchen.mp4" MIME_TYPE="video/mp4"/></HEADER>
      <TIME_ORDER><TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="3200"/>…</TIME_ORDER>
      <TIER TIER_ID="actions"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1"
        TIME_SLOT_REF2="ts2"><ANNOTATION_VALUE>cut</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>…

The value of an annotation is its class, or with `label_from="tier"` the name of its tier. Tiers that depend on another
one (PARENT_REF), such as comments on actions, are left out unless `label_from` asks for them. The first video of a file
names it, and its TIME_ORIGIN is the time in the video at which the document starts.

Source: EAF Annotation Format, Max Planck Institute for Psycholinguistics.
"""

from collections.abc import Mapping
from xml.etree import ElementTree

from kd_jax.data.annotations.tools.media import video_name
from kd_jax.data.checks import TIERS, Findings, number, parse, reason


class _NoEntities(ElementTree.TreeBuilder):
    """Refuses a document type declaration, in which entities could be declared that fill the memory."""

    def doctype(self, name, public_id, system_id):
        raise ValueError("it declares a document type, which .eaf files do not have")


def read(text: str, where: str, findings: Findings, label_from: str = "") -> dict[str, dict]:
    """Reads the annotations of one video.

    Args:
      where: path of the file.
      label_from: '': the values of tiers that depend on no other are classes; 'value': those of all tiers; 'tier': the
        names of tiers that depend on no other; otherwise the name of the tier whose values are classes.
    """
    try:
        root = ElementTree.fromstring(text.encode(), ElementTree.XMLParser(target=_NoEntities(), encoding="utf-8"))
        if root.tag != "ANNOTATION_DOCUMENT":
            raise ValueError(f"its first element is {root.tag}, expected ANNOTATION_DOCUMENT")
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        findings.problem("unreadable file", f"{where}: not readable as ELAN XML ({reason(error)})")
        return {}
    slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    by_id = {found.get("ANNOTATION_ID"): found for found in root.iter() if found.get("ANNOTATION_ID")}
    media = list(root.iter("MEDIA_DESCRIPTOR"))
    media = [found for found in media if (found.get("MIME_TYPE") or "").startswith("video")] or media
    video = video_name(media[0].get("MEDIA_URL") or media[0].get("RELATIVE_MEDIA_URL") or "") if media else ""
    video = video or video_name(where).removesuffix(".eaf")
    origin = number(parse((media[0].get("TIME_ORIGIN") if media else None) or "0"))
    tiers = _choose_tiers({tier.get("TIER_ID") or "": tier for tier in root.iter("TIER")}, where, findings, label_from)
    actions = []
    for name, tier in tiers.items():
        for found in tier.findall("ANNOTATION/*"):
            value = (found.findtext("ANNOTATION_VALUE") or "").strip()
            label = name if label_from == "tier" else value
            case = f"{video}: annotation {found.get('ANNOTATION_ID')} of tier {name}"
            start, end = _times(found, by_id, slots)
            if not label:
                findings.problem("class", f"{case} has no value; --label_from=tier reads the names of the tiers")
            elif start is None or end is None:
                findings.problem("time", f"{case} is not aligned; give it a start and an end in ELAN")
            else:
                times = [(number(parse(time)) + origin) / 1000 for time in (start, end)]
                actions.append([label, *times])
    return {video: {"actions": actions, "unit": "seconds"}}


def _choose_tiers(
    tiers: Mapping[str, ElementTree.Element], where: str, findings: Findings, label_from: str
) -> dict[str, ElementTree.Element]:
    """Returns the tiers whose annotations are read, by name; notes them if others are left out."""
    if label_from in tiers:
        chosen = {label_from: tiers[label_from]}
    elif label_from in ("", "tier"):
        chosen = {name: tier for name, tier in tiers.items() if not tier.get("PARENT_REF")}
    elif label_from == "value":
        chosen = dict(tiers)
    else:
        known = ", ".join(tiers)
        findings.problem("tier", f"{where}: there is no tier {label_from!r} (--label_from); its tiers are {known}")
        return {}
    if left := [name for name in tiers if name not in chosen]:
        used = f"{where}: actions are those of {', '.join(chosen)}"
        findings.note(TIERS, f"{used}; left out: {', '.join(left)} (--label_from chooses another tier)")
    return chosen


def _times(found: ElementTree.Element, by_id: Mapping, slots: Mapping) -> tuple[str | None, str | None]:
    """Returns start and end as in the file; an annotation that refers to another one has the times of that one."""
    for _ in by_id:
        if "TIME_SLOT_REF1" in found.attrib:
            return slots.get(found.get("TIME_SLOT_REF1")), slots.get(found.get("TIME_SLOT_REF2"))
        found = by_id.get(found.get("ANNOTATION_REF"), ElementTree.Element("none"))
    return None, None
