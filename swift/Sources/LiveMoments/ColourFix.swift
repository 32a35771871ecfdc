/// The restored photo's detail with the video frame's colours (runtime/color.py: wavelet_color_fix).
///
/// - Parameters:
///   - content: the restored photo in [0, 1].
///   - style: the resized video frame; clipped to [0, 1].
public func colourFix(content: Picture, style: Picture) -> Picture {
    precondition(content.size == style.size && content.channels == style.channels, "the pictures differ in shape")
    // Linear: high(content) + low(style) = content + low(style - content)
    var fixed = style
    for place in fixed.values.indices {
        fixed.values[place] = min(max(fixed.values[place], 0), 1) - content.values[place]
    }
    for dilation in [1, 2, 4, 8, 16] { fixed = smooth(fixed, dilation) }
    for place in fixed.values.indices {
        fixed.values[place] = min(max(fixed.values[place] + content.values[place], 0), 1)
    }
    return fixed
}

/// [1 2 1]/4 along rows and columns, taps `dilation` pixels apart, borders replicated (color.py: _smooth).
private func smooth(_ picture: Picture, _ dilation: Int) -> Picture {
    let (height, width, channels) = (picture.size.height, picture.size.width, picture.channels)
    var out = picture
    var line = [Float](repeating: 0, count: width * channels)
    for row in 0..<height {
        let above = max(row - dilation, 0) * width * channels
        let below = min(row + dilation, height - 1) * width * channels
        let own = row * width * channels
        for place in line.indices {
            let centre = picture.values[own + place]
            var sum = picture.values[above + place] + picture.values[below + place]
            sum += centre
            sum += centre
            line[place] = sum * 0.0625
        }
        for column in 0..<width {
            let left = max(column - dilation, 0) * channels
            let right = min(column + dilation, width - 1) * channels
            for channel in 0..<channels {
                let centre = line[column * channels + channel]
                out.values[own + column * channels + channel] =
                    centre + centre + line[left + channel] + line[right + channel]
            }
        }
    }
    return out
}
