"""An image for the examples of the OpenAPI document."""

# 64 by 64 pixels: a red circle on white.
RED_CIRCLE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAABlBMVEX////cHh7/Hx2WAAAAi0lEQVR4"
    "2q3RsQ2CYBiE4YeLiRQmsoGM4AiMxmiMwgiUFIbf4jcGI51ec5e8ua/4jv/ptr5CKQhnZkJLR7hzIQyE"
    "hoJGNDCKwCBO0IsWugogOmhFD6c9eoeh2jdqlOpHrR/DCOUQTbAdohkeYoF1j1ZYxANmscG0f52RQphU"
    "7FrKQljVo69RPmb6h54OXyEda4io2gAAAABJRU5ErkJggg=="
)
