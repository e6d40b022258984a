package framing

import (
	"bytes"
	"strings"
)

// Error is a message that is refused. Its text is constant and holds nothing of what the client sent.
type Error string

func (e Error) Error() string { return "bad framing: " + string(e) }

// Why a message is refused.
const (
	ErrBareLF         Error = "a line ends in LF without CR"
	ErrControl        Error = "CR or NUL within a line"
	ErrRequestLine    Error = "request line is not METHOD TARGET HTTP/1.1 or HTTP/1.0"
	ErrFolded         Error = "a header is continued on the next line"
	ErrName           Error = "header name has a space or another character that is not allowed, or is missing"
	ErrLookalike      Error = "header name reads like one of framing once _ is taken for -"
	ErrLength         Error = "Content-Length is not one number"
	ErrTwoLengths     Error = "more than one Content-Length"
	ErrLengthAndChunk Error = "Content-Length beside Transfer-Encoding"
	ErrCoding         Error = "Transfer-Encoding is not exactly chunked, once"
	ErrCodingIn10     Error = "Transfer-Encoding in HTTP/1.0"
	ErrHosts          Error = "not exactly one Host"
	ErrOtherHost      Error = "target names another host than Host"
	ErrChunkSize      Error = "chunk size is not up to 15 hexadecimal digits"
	ErrChunkExtension Error = "chunk extension is longer than 256 bytes or has control characters"
	ErrChunkEnd       Error = "chunk does not end in CR LF after its size"
	ErrTrailer        Error = "trailer names a header that frames or routes the message"
	ErrTooLarge       Error = "header or trailer is too large"
)

// maxExtension bounds the extensions of one chunk, which nobody reads.
const maxExtension = 256

type state uint8

const (
	requestLine state = iota
	header
	body // of known length
	chunkSize
	chunkExtension
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailer
)

// parser follows the messages of one connection, in one pass and without copying, except for a line that arrives
// in parts. Its zero value is before the first message; max must be set.
type parser struct {
	max     int    // bytes of a header, and of a trailer
	pending []byte // beginning of the current line, of an earlier part
	size    int    // bytes of the current header or trailer
	remain  int64  // of the body or the chunk
	state   state
	digits  uint8 // of the chunk size
	ext     int   // length of the chunk's extension

	message
	afterPost bool // the message before was a POST: one empty line may follow it (RFC 9112, 2.2)
}

// message is what the header says about framing.
type message struct {
	post, one          bool // method POST; HTTP/1.1
	hosts              uint8
	absolute           bool   // target
	authority, host    []byte // authority: of an absolute target
	hasLength, chunked bool
	length             int64
}

// atRest reports whether a message could begin here.
func (p *parser) atRest() bool { return p.state == requestLine && len(p.pending) == 0 }

// feed takes the next bytes of the connection. It returns how many of them may be passed on, and if that is not all,
// why. What may be passed on never completes a header, chunk or trailer that is refused.
func (p *parser) feed(b []byte) (int, error) {
	for i := 0; i < len(b); {
		switch p.state {
		case requestLine, header, trailer:
			n, err := p.line(b[i:])
			i += n
			if err != nil {
				return i, err
			}
		case body:
			i += p.skip(b[i:])
			if p.remain == 0 {
				p.next()
			}
		case chunkData:
			i += p.skip(b[i:])
			if p.remain == 0 {
				p.state = chunkDataCR
			}
		default:
			if err := p.chunkByte(b[i]); err != nil {
				return i, err
			}
			i++
		}
	}
	return len(b), nil
}

// skip passes over the bytes of b that belong to the body or chunk.
func (p *parser) skip(b []byte) int {
	n := min(int64(len(b)), p.remain)
	p.remain -= n
	return int(n)
}

// next begins a new message.
func (p *parser) next() {
	p.afterPost = p.post
	p.state, p.size = requestLine, 0
	p.message = message{authority: p.authority[:0], host: p.host[:0]}
}

// line takes one line or a part of it from b.
func (p *parser) line(b []byte) (int, error) {
	if len(p.pending) == 0 && p.state == requestLine && !token[b[0]] && !(p.afterPost && b[0] == '\r') {
		return 0, ErrRequestLine // at once, not at the end of a line that may never come
	}
	i := bytes.IndexByte(b, '\n')
	n := i + 1
	if i < 0 {
		n = len(b)
	}
	if room := p.max - p.size; n > room {
		return room, ErrTooLarge
	}
	p.size += n
	if i < 0 {
		p.pending = append(p.pending, b...)
		return n, nil
	}
	line := b[:i]
	if len(p.pending) > 0 {
		p.pending = append(p.pending, line...)
		line = p.pending
		if cap(p.pending) > 4<<10 {
			p.pending = nil // do not keep what one long line took
		} else {
			p.pending = p.pending[:0]
		}
	}
	// From here on, line is read before the next append.
	if len(line) == 0 || line[len(line)-1] != '\r' {
		return i, ErrBareLF
	}
	line = line[:len(line)-1]
	if bytes.IndexByte(line, '\r') >= 0 || bytes.IndexByte(line, 0) >= 0 {
		return i, ErrControl
	}
	var err error
	switch {
	case p.state == requestLine:
		err = p.request(line)
	case p.state == header && len(line) == 0:
		err = p.endOfHeader()
	case p.state == header:
		err = p.field(line)
	case len(line) == 0:
		p.next()
	default:
		err = trailerField(line)
	}
	if err != nil {
		return i, err
	}
	return i + 1, nil
}

// request takes the request line.
func (p *parser) request(line []byte) error {
	if len(line) == 0 { // after a POST
		p.afterPost, p.size = false, 0
		return nil
	}
	method, rest, ok := bytes.Cut(line, []byte{' '})
	target, version, ok2 := bytes.Cut(rest, []byte{' '})
	if !ok || !ok2 || len(target) == 0 {
		return ErrRequestLine
	}
	for _, c := range method {
		if !token[c] {
			return ErrRequestLine
		}
	}
	switch string(version) {
	case "HTTP/1.1":
		p.one = true
	case "HTTP/1.0":
	default:
		return ErrRequestLine
	}
	p.post = string(method) == "POST"
	if target[0] != '/' {
		if _, rest, ok := bytes.Cut(target, []byte("://")); ok {
			if end := bytes.IndexAny(rest, "/?#"); end >= 0 {
				rest = rest[:end]
			}
			p.absolute = true
			p.authority = append(p.authority[:0], rest...)
		}
	}
	p.state = header
	return nil
}

// field takes one line of a header. Only those that frame the message are looked at further.
func (p *parser) field(line []byte) error {
	name, value, err := split(line)
	if err != nil {
		return err
	}
	switch framing(name) {
	case lookalike:
		return ErrLookalike
	case host:
		p.hosts = min(p.hosts+1, 2)
		p.host = append(p.host[:0], value...)
	case contentLength:
		if p.hasLength {
			return ErrTwoLengths
		}
		if len(value) == 0 || len(value) > 18 {
			return ErrLength
		}
		for _, c := range value {
			if c < '0' || c > '9' {
				return ErrLength
			}
			p.length = p.length*10 + int64(c-'0')
		}
		p.hasLength = true
	case transferEncoding:
		if p.chunked || !bytes.EqualFold(value, []byte("chunked")) {
			return ErrCoding
		}
		p.chunked = true
	}
	return nil
}

func (p *parser) endOfHeader() error {
	switch {
	case p.chunked && !p.one:
		return ErrCodingIn10
	case p.chunked && p.hasLength:
		return ErrLengthAndChunk
	case p.hosts > 1 || p.hosts == 0 && p.one:
		return ErrHosts
	case p.absolute && p.hosts > 0 && !bytes.EqualFold(p.authority, p.host):
		return ErrOtherHost
	}
	switch {
	case p.chunked:
		p.state, p.digits, p.remain = chunkSize, 0, 0
	case p.length > 0:
		p.state, p.remain = body, p.length
	default:
		p.next()
	}
	return nil
}

// chunkByte takes a byte of what is between the data of chunks.
func (p *parser) chunkByte(c byte) error {
	switch p.state {
	case chunkSize:
		d := hex(c)
		switch {
		case d >= 0 && p.digits < 15:
			p.digits++
			p.remain = p.remain<<4 | int64(d)
		case p.digits == 0 || d >= 0:
			return ErrChunkSize
		case c == ';':
			p.state, p.ext = chunkExtension, 0
		case c == '\r':
			p.state = chunkSizeLF
		default:
			return ErrChunkSize
		}
	case chunkExtension:
		p.ext++
		switch {
		case c == '\r':
			p.state = chunkSizeLF
		case p.ext > maxExtension || c < ' ' && c != '\t' || c == 0x7f:
			return ErrChunkExtension
		}
	case chunkSizeLF:
		switch {
		case c != '\n':
			return ErrChunkEnd
		case p.remain == 0:
			p.state, p.size = trailer, 0
		default:
			p.state = chunkData
		}
	case chunkDataCR:
		if c != '\r' {
			return ErrChunkEnd
		}
		p.state = chunkDataLF
	case chunkDataLF:
		if c != '\n' {
			return ErrChunkEnd
		}
		p.state, p.digits, p.remain = chunkSize, 0, 0
	}
	return nil
}

// split takes a line apart. The value is without the white space around it.
func split(line []byte) (name, value []byte, err error) {
	for i, c := range line {
		switch {
		case token[c]:
		case c == ':' && i > 0:
			return line[:i], bytes.Trim(line[i+1:], " \t"), nil
		case i == 0 && (c == ' ' || c == '\t'):
			return nil, nil, ErrFolded
		default:
			return nil, nil, ErrName
		}
	}
	return nil, nil, ErrName
}

// trailerField refuses a trailer that would change what the header said, to somebody who merges the two.
func trailerField(line []byte) error {
	name, _, err := split(line)
	if err == nil && framing(name) != other {
		err = ErrTrailer
	}
	return err
}

type kind uint8

const (
	other kind = iota
	host
	contentLength
	transferEncoding
	lookalike
)

// framing says which header of framing a name is.
func framing(name []byte) kind {
	k := other
	switch len(name) {
	case len("host"):
		if equalFold(name, "host") {
			return host
		}
		return other
	case len("content-length"):
		if !equalFold(name, "content-length") {
			return other
		}
		k = contentLength
	case len("transfer-encoding"):
		if !equalFold(name, "transfer-encoding") {
			return other
		}
		k = transferEncoding
	default:
		return other
	}
	if bytes.IndexByte(name, '_') >= 0 {
		return lookalike
	}
	return k
}

// equalFold compares a name with one in lower case, and takes _ for -.
func equalFold(name []byte, lower string) bool {
	for i, c := range name {
		switch {
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		case c == '_':
			c = '-'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func hex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// token holds the characters of methods and header names (RFC 9110, 5.6.2).
var token = func() (t [256]bool) {
	for c := range 256 {
		t[c] = '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c < 128 && strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c))
	}
	return t
}()
