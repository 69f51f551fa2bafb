package main

import (
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// decodeConfig is json.Unmarshal for configurations, in a tenth of the time of a
// first call: encoding/json prepares itself to encode every type that a
// configuration could hold. What it does not understand, and every error, is
// left to encoding/json, so the result is the same.
func decodeConfig(data []byte, v any) error {
	out := reflect.ValueOf(v).Elem()
	d := decoder{data: data}
	if d.value(out) && d.space() && d.at == len(data) {
		return nil
	}
	out.SetZero()
	return json.Unmarshal(data, v)
}

// A decoder reads one document. Its methods report whether all is plain.
type decoder struct {
	data  []byte
	at    int
	depth int
}

const maxNesting = 100

func (d *decoder) space() bool {
	for d.at < len(d.data) {
		switch d.data[d.at] {
		case ' ', '\t', '\n', '\r':
			d.at++
		default:
			return true
		}
	}
	return true
}

// next reports whether c comes next, and takes it.
func (d *decoder) next(c byte) bool {
	d.space()
	if d.at < len(d.data) && d.data[d.at] == c {
		d.at++
		return true
	}
	return false
}

func (d *decoder) word(w string) bool {
	if strings.HasPrefix(string(d.data[d.at:min(len(d.data), d.at+len(w))]), w) {
		d.at += len(w)
		return true
	}
	return false
}

func (d *decoder) value(v reflect.Value) bool {
	d.space()
	if d.at >= len(d.data) || d.depth > maxNesting {
		return false
	}
	if d.data[d.at] == 'n' {
		// null leaves everything but references as it is.
		if !d.word("null") {
			return false
		}
		switch v.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Interface:
			v.SetZero()
		}
		return true
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return d.value(v.Elem())
	case reflect.Struct:
		return d.object(v)
	case reflect.Map:
		return d.table(v)
	case reflect.Slice:
		return d.list(v)
	case reflect.String:
		s, ok := d.text()
		if ok {
			v.SetString(s)
		}
		return ok
	case reflect.Bool:
		if d.word("true") {
			v.SetBool(true)
			return true
		}
		if d.word("false") {
			v.SetBool(false)
			return true
		}
		return false
	case reflect.Int, reflect.Int64, reflect.Int32, reflect.Int16, reflect.Int8:
		n, err := strconv.ParseInt(d.number(), 10, v.Type().Bits())
		v.SetInt(n)
		return err == nil
	case reflect.Uint, reflect.Uint64, reflect.Uint32, reflect.Uint16, reflect.Uint8:
		n, err := strconv.ParseUint(d.number(), 10, v.Type().Bits())
		v.SetUint(n)
		return err == nil
	}
	return false
}

// number is the digits that come next; a fraction or an exponent is not plain.
func (d *decoder) number() string {
	start := d.at
	if d.at < len(d.data) && d.data[d.at] == '-' {
		d.at++
	}
	first := d.at
	for d.at < len(d.data) && d.data[d.at] >= '0' && d.data[d.at] <= '9' {
		d.at++
	}
	if d.at-first > 1 && d.data[first] == '0' {
		return ""
	}
	return string(d.data[start:d.at])
}

// text is a string without escapes; others are rare enough for encoding/json.
func (d *decoder) text() (string, bool) {
	if !d.next('"') {
		return "", false
	}
	for i := d.at; i < len(d.data); i++ {
		switch c := d.data[i]; {
		case c == '"':
			s := d.data[d.at:i]
			d.at = i + 1
			return string(s), utf8.Valid(s)
		case c == '\\':
			return d.escaped()
		case c < ' ':
			return "", false
		}
	}
	return "", false
}

// escaped lets encoding/json read the string that begins before at.
func (d *decoder) escaped() (s string, ok bool) {
	for i := d.at; i < len(d.data); i++ {
		switch d.data[i] {
		case '\\':
			i++
		case '"':
			err := json.Unmarshal(d.data[d.at-1:i+1], &s)
			d.at = i + 1
			return s, err == nil
		}
	}
	return "", false
}

func (d *decoder) list(v reflect.Value) bool {
	if v.Type().Elem().Kind() == reflect.Uint8 || !d.next('[') {
		return false
	}
	d.depth++
	defer func() { d.depth-- }()
	v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	if d.next(']') {
		return true
	}
	for {
		e := reflect.New(v.Type().Elem()).Elem()
		if !d.value(e) {
			return false
		}
		v.Set(reflect.Append(v, e))
		if d.next(']') {
			return true
		}
		if !d.next(',') {
			return false
		}
	}
}

// each reads the members of an object.
func (d *decoder) each(f func(key string) bool) bool {
	if !d.next('{') {
		return false
	}
	d.depth++
	defer func() { d.depth-- }()
	if d.next('}') {
		return true
	}
	for {
		d.space()
		key, ok := d.text()
		if !ok || !d.next(':') || !f(key) {
			return false
		}
		if d.next('}') {
			return true
		}
		if !d.next(',') {
			return false
		}
	}
}

func (d *decoder) table(v reflect.Value) bool {
	t := v.Type()
	if t.Key().Kind() != reflect.String {
		return false
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(t))
	}
	return d.each(func(key string) bool {
		e := reflect.New(t.Elem()).Elem()
		if !d.value(e) {
			return false
		}
		v.SetMapIndex(reflect.ValueOf(key).Convert(t.Key()), e)
		return true
	})
}

func (d *decoder) object(v reflect.Value) bool {
	return d.each(func(key string) bool {
		i, ok := field(v.Type(), key)
		if !ok {
			return false
		}
		if i < 0 {
			return d.skip()
		}
		return d.value(v.Field(i))
	})
}

// field finds a member by its name; -1 if there is none. A name that differs in
// its case only is left to encoding/json.
func field(t reflect.Type, key string) (int, bool) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || name == "" || name == "-" {
			return 0, false
		}
		if name == key {
			return i, true
		}
	}
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); strings.EqualFold(name, key) {
			return 0, false
		}
	}
	return -1, true
}

// skip reads over a value that nobody wants.
func (d *decoder) skip() bool {
	d.space()
	if d.at >= len(d.data) || d.depth > maxNesting {
		return false
	}
	switch d.data[d.at] {
	case '{':
		return d.each(func(string) bool { return d.skip() })
	case '[':
		d.at++
		d.depth++
		defer func() { d.depth-- }()
		if d.next(']') {
			return true
		}
		for d.skip() {
			if d.next(']') {
				return true
			}
			if !d.next(',') {
				return false
			}
		}
		return false
	case '"':
		_, ok := d.text()
		return ok
	case 't':
		return d.word("true")
	case 'f':
		return d.word("false")
	case 'n':
		return d.word("null")
	}
	n := d.number()
	return n != "" && n != "-" && (d.at >= len(d.data) || !strings.ContainsRune(".eE", rune(d.data[d.at])))
}
