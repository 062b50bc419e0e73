"""Codecs: conversion between images and the x_0 that is diffused."""
