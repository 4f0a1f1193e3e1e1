"""Reading audio: decoding, resampling, folders of songs, splits by song."""
